"""What runs inside a job: data, environments, experts, policies, the DeepSpeed engine, stages."""
