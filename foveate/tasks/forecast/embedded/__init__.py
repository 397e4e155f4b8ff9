"""The series that ships with foveate; see README.md beside this file."""
