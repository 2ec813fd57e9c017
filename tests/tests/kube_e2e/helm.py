"""Installs, upgrades or uninstalls the chart with Helm's own library: `helm.py ACTION`, the rest as JSON on standard input.

{"kubeconfig": FILE, "namespace": NAME, "release": NAME, "chart": DIR, "values": {...}, "timeout": SECONDS}
It prints the chart's notes. Called by the end-to-end suite and by the chart's own test; what either waits for, it waits for itself.
"""

import asyncio
import json
import sys

import helm_sdkpy


async def main(action):
    asked = json.load(sys.stdin)
    config = helm_sdkpy.Configuration(asked["namespace"], asked["kubeconfig"])
    if action == "uninstall":
        try:
            await helm_sdkpy.Uninstall(config).run(asked["release"], wait=True, timeout=asked["timeout"])
        except helm_sdkpy.HelmError as error:
            if "release: not found" not in str(error):
                raise
            print(f"there is no release {asked['release']}: nothing to uninstall")
        return
    kind = {"install": helm_sdkpy.Install, "upgrade": helm_sdkpy.Upgrade}[action]
    more = {"create_namespace": True} if action == "install" else {}
    release = await kind(config).run(
        asked["release"],
        asked["chart"],
        values=asked["values"],
        wait=False,
        timeout=asked["timeout"],
        server_side_apply=True,
        **more,
    )
    print(release["info"]["notes"])


try:
    asyncio.run(main(sys.argv[1]))
except helm_sdkpy.HelmError as error:
    sys.exit(f"{sys.argv[1]}: {error}")
