"""Figures of an audit with their uncertainty: rates, paired differences, distances."""
