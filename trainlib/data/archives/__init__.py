"""Archives of pictures, read in place: tar and zip files, and the index beside shards."""
