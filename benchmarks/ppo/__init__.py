"""rldk.ppo beside TRL's own PPO, where TRL ships one: time, memory, and what they learn."""
