"""Guests: what libvirt knows of them, and what it is asked to do."""
