"""Attribution of a prediction: Shapley values, voxel maps and anatomical regions."""
