"""Tests of the `boxlite` runtime, and the double of a BoxLite server that they run against."""
