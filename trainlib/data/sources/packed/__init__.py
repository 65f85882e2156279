"""Pictures in tar and zip archives and in shards of webdataset, read in place; making such shards."""
