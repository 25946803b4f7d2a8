"""Tests of notify/chaos."""
