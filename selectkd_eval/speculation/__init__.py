"""What does a student buy as a draft? Engines that draft and verify, the gate before any speed, the clock."""
