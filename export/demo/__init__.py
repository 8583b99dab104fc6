"""The demo phone agent: its screens, its training, its evaluation."""
