"""The Ray side: the session, the pool of replicas, the training workers. The only importer of Ray."""
