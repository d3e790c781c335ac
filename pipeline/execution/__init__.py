"""Plans the work, shard by shard, and runs it: in this process, in worker processes or on a dask cluster."""
