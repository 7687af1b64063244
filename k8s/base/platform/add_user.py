"""Create the user that sweeps log in as, or give it the password of the Secret.

Runs in the MLflow pod, whose environment has both accounts:
`kubectl exec deploy/mlflow -- python /etc/mlflow/add_user.py`.
"""

import base64
import json
import os
import sys
import urllib.error
import urllib.parse
import urllib.request

SERVER = os.environ.get("MLFLOW_SERVER", "http://127.0.0.1:5000")
ADMIN = os.environ.get("MLFLOW_AUTH_ADMIN_USERNAME", "admin")


def ask(method: str, path: str, values: dict[str, str] | None = None) -> int:
    """Send a request as the admin; returns the status code."""
    account = f"{ADMIN}:{os.environ['MLFLOW_AUTH_ADMIN_PASSWORD']}"
    request = urllib.request.Request(
        f"{SERVER}/api/2.0/mlflow/users/{path}",
        None if values is None else json.dumps(values).encode(),
        {
            "Authorization": "Basic " + base64.b64encode(account.encode()).decode(),
            "Content-Type": "application/json",
        },
        method=method,
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def main() -> int:
    """Create the user, or change its password; the exit code."""
    name = os.environ["LORCHESTRA_USERNAME"]
    account = {"username": name, "password": os.environ["LORCHESTRA_PASSWORD"]}
    found = ask("GET", "get?" + urllib.parse.urlencode({"username": name}))
    if found == 404:
        status, what = ask("POST", "create", account), "created"
    elif found == 200:
        status, what = ask("PATCH", "update-password", account), "has the password of the Secret"
    else:
        status, what = found, ""
    if status != 200:
        sys.stderr.write(
            f"{SERVER}: answered {status} for user {name!r}; allowed: 200. Compare "
            "MLFLOW_AUTH_ADMIN_PASSWORD with the password that the server was first started with; "
            "a password has 12 characters or more.\n"
        )
        return 1
    sys.stdout.write(f"user {name} {what}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
