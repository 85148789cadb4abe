"""The guest of a box: the program that stands where a microVM has its kernel and its agent."""
