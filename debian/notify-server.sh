#!/bin/sh
# notify's server in the foreground, in the environment that came with the package: see notify-server(8).
exec /usr/lib/notify-server/bin/twistd --nodaemon --pidfile= --umask=0077 notify "$@"
