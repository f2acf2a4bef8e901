"""The login node: stage and cluster profile to a checked, rendered, queued job."""
