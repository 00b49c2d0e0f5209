"""From a desired bundle to an active one.

- ``reconciler`` brings the device to its ``desired`` state: ``desired_intake`` takes documents in, ``planner`` says
  what comes next (pure), ``compose`` puts it all together;
- ``settings``, ``status``, ``reporter`` and ``offline`` are what operators see of it, ``prepack`` and ``gc`` what it
  makes and removes on the disk;
- ``update`` is one update: the state table (pure), its runner, canary, probation and the way back;
- ``process`` is the short-lived installer process and its messages; in there run ``download`` (RESOLVE to SEAL) and
  ``trust`` (what may be installed), and ``verify`` looks at what lies on this device;
- ``ports`` is what serving has to offer for that.
"""
