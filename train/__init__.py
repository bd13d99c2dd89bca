"""What is learned from pairs: DPO with TRL on Ray Train, and what it changed."""
