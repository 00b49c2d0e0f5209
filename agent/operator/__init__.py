"""What an operator on the box reaches: the control socket of the running agent."""
