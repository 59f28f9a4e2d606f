"""Benchmarks: fixed-seed data, a shaped loopback S3, and the figures of the main job."""
