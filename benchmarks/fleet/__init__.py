"""What the fleet's processes take, side by side with what they stand on."""
