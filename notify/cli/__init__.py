"""The commands of ``notify``, one module each.

A module of this package whose name is in :data:`COMMANDS` offers ``SUMMARY`` (one line), ``DESCRIPTION``,
``EXAMPLES``, ``arguments(parser)``, and ``run(options, terminal)``, which returns the exit status. What only
``run`` needs is imported there, so that ``notify --help`` stays quick.
"""

#: in the order that ``notify --help`` shows them
COMMANDS = (
    *("token", "publish", "signal", "listen", "presence"),
    *(
        "nodes",
        "connections",
        "topics",
        "trace",
        "disconnect",
        "unsubscribe",
        "revoke",
        "shed",
        "reload",
        "drain",
    ),
    *("check-config", "doctor", "chaos", "new-epoch"),
)
