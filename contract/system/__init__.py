"""What both sides do with the machine below them: durable files, the frame of a command."""
