"""Every op in plain torch: any device, float32 or float64, within a set amount of memory."""
