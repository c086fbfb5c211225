"""Measuring teacher, student and controls: only this package and training/ make an environment or read a data set."""
