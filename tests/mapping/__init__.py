"""Tests of sources: what they are, and how records of foreign topics become events."""
