"""What the policy and the teachers write: conversations, answers and reasoning traces."""
