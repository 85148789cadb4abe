"""The same tests of the API over every runtime: one API, honest differences."""
