"""Where a visitor is with its present request, or between two of them.

                 head judged, body to come            body complete
    HEAD ──────────────────────────────────► BODY ──────────────────► REPLY ──► HEAD, or DONE
     │  ▲                                                               │
     │  └──────────── FULL (output has no room) ◄───────────────────────┘
     ├──► PARKED ──► BODY, REPLY      waits for a link, a delay, a slow policy (admission.py)
     ├──► COLLECT ──► PARKED …        a policy wants the body first
     └──► REPLY ──► UPGRADED          a 101: joined to the local service

From anywhere to DONE: the visitor left, or was made to.
"""

from __future__ import annotations

import enum


class Phase(enum.Enum):
    HEAD = "reading a head, or idle"
    FULL = "output is full, nothing is taken"
    PARKED = "waiting"
    COLLECT = "reading a body for a policy"
    BODY = "passing a body on"
    REPLY = "waiting for the reply, or writing it"
    UPGRADED = "joined"
    HANDED_OVER = "somebody else's"
    DONE = "done"
