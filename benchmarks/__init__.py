"""What was measured, by which programs; results/ holds what they wrote."""
