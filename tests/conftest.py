"""Nothing but its place: pytest puts the folder of a conftest on the path, so that every test can import `laws`."""
