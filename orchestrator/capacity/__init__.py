"""What a sweep needs of a device before it starts: memory of its configurations, hours, money."""
