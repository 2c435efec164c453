"""A stand-in for the Qure.ai Platform API, for development and tests. SIMULATED, NOT FOR CLINICAL USE.

It is a program of its own that shares no code with the rest of the package: written from the service's documentation
alone, so that a misreading in one is not repeated in the other. Nothing it says of an image means anything. Every
picture, report and object that it makes says so in plain sight.

Run it with ``python -m qure_provider.emulator --help``, or beside a test::

    from qure_provider.emulator.model import Reset
    from qure_provider.emulator.server import running_emulator
    from qure_provider.emulator.settings import EmulatorSettings

    with running_emulator(EmulatorSettings(processing_seconds=0)) as emulator:
        requests.post(f"{emulator.base_url}/studies", files=files, headers=emulator.headers)
        emulator.control.plan(sop_instance_uid, triage="Critical", findings=["pneumothorax"])
        emulator.control.inject(Reset(kind="results", times=2))
        assert emulator.control.count("upload", status=200) == 1

What the documentation leaves open is a setting (``settings.EmulatorSettings``) or a plan, so that a client can be tried
with either answer. Where it names no text at all, the text is made up; ``answers`` says where.

The control API
---------------

``control.EmulatorControl`` speaks it; bodies are the JSON of the classes in ``model``. It needs no token and answers
requests from this machine only. Errors are 422 with the reason.

- ``GET /_emulator/settings``: the settings, without token and source. ``PATCH`` changes some, from the next request on.
- ``PUT /_emulator/plans/{uid}``: a ``Plan`` for a SOPInstanceUID (X-ray), SeriesInstanceUID or StudyInstanceUID.
- ``DELETE /_emulator/plans``: drops all plans.
- ``POST /_emulator/faults``: switches a fault on: ``Answer``, ``Reset``, ``Truncate``, ``Stall``, ``Drip``,
``Oversize``,
  ``LoseFiles``, ``LicenseExpired``, ``OtherPatient`` or ``MissingFiles``. ``GET`` lists those still on, ``DELETE``
  switches all off.
- ``GET /_emulator/requests``: requests seen, each a ``RequestRecord``; ``?kind=`` and ``?uid=`` choose. ``DELETE``
starts
  counting afresh.
- ``GET /_emulator/count?kind=``: how many there were; ``&status=`` and ``&uid=`` choose.
- ``GET /_emulator/peaks``: kind to how many were under way at once, at most.
- ``GET /_emulator/received``: files received, each a ``ReceivedFile``; ``?uid=`` chooses.
- ``GET /_emulator/resources``: what results exist for, each a ``ResourceState``; ``?uid=`` chooses.
- ``DELETE /_emulator/everything``: starts afresh; settings stay.
"""
