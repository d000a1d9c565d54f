"""How people and programs reach the engine: the command line and the HTTP server."""
