import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.nio.file.Path;

/** Sends a file as the body of a POST: URL, Content-Type, Authorization, path. Prints the status and the body. */
class Upload {
  public static void main(String[] arguments) throws Exception {
    HttpRequest request = HttpRequest.newBuilder(URI.create(arguments[0]))
        .header("Content-Type", arguments[1])
        .header("Authorization", arguments[2])
        .POST(HttpRequest.BodyPublishers.ofFile(Path.of(arguments[3])))
        .build();
    HttpClient client = HttpClient.newBuilder().version(HttpClient.Version.HTTP_1_1).build();
    for (int time = 0; time < 5; time++) {
      HttpResponse<String> response = client.send(request, HttpResponse.BodyHandlers.ofString());
      System.out.println(response.statusCode() + " " + response.body());
    }
  }
}
