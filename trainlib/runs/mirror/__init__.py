"""A copy of a run at another place, such as a bucket: kept while it trains, and gone on from where its disk is lost."""
