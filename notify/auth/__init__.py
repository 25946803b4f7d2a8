"""Authenticators: who is at the other end, and what may they receive?"""
