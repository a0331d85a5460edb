#!/bin/sh
# Succeeds once the broker of `--bootstrap-server HOST:PORT` accepts connections.
exec python3 -c "import socket, sys; socket.create_connection(sys.argv[2].split(':'), 10)" "$@"
