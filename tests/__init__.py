"""Tests of arenite, through its public doors."""
