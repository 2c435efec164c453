"""The contract of the Qure.ai Platform API: routes, request shapes, answers and errors.

Pure: no network and no Airflow. Both the requests-based and the aiohttp-based client build on it, so that they
cannot drift apart.
"""
