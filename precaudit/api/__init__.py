"""What Python code calls: audits around a loop, reports as objects, the static pass as a function."""
