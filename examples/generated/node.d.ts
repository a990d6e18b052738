// The two functions of Node.js that the example uses, so that it needs no package with types.
declare module "node:fs/promises" {
  export function readFile(path: string): Promise<Uint8Array<ArrayBuffer>>;
}
declare const process: { argv: string[]; exit(code: number): never };
