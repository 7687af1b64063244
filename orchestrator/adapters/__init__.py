"""Commands on registered adapter versions: register, evaluate, shrink, compare, list."""
