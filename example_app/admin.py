"""A Flask-Admin page for the flight log, if ``EXAMPLE_ADMIN`` is set."""

from __future__ import annotations

from typing import Any
from typing import ClassVar

from flask import flash
from flask import Flask
from flask_admin import Admin
from flask_admin.contrib.sqla import ModelView
from flask_admin.form import SecureForm
from flask_admin.theme import Bootstrap4Theme
from wtforms import HiddenField
from wtforms import TextAreaField

from .extensions import db
from .flightlog import change_flight
from .flightlog import ConflictError
from .flightlog import InvalidFlightError
from .flightlog import parse_flight
from .flightlog import parse_version
from .models import Flight


def init_app(app: Flask) -> None:
    """Add the page at ``/admin/``.

    It has no login: everyone who can reach the server can change the log. A real
    application checks the user, in a method ``is_accessible`` of the page.
    """
    if not app.secret_key:
        raise RuntimeError(
            "The admin page keeps its messages and tokens in Flask's session. Set"
            " FLASK_SECRET_KEY, to the same value for all workers."
        )

    # Flask-Admin takes `db` itself only from Flask-SQLAlchemy.
    page = FlightAdmin(
        *(Flight, db.session),
        name="Flight log",
        endpoint="admin",
        url="/admin",
        static_folder="static",
    )
    Admin(app, "Airports: admin", index_view=page, theme=Bootstrap4Theme())


class FlightAdmin(ModelView):  # type: ignore[misc]
    """Search and correct entries; new ones come from the application's own form."""

    can_create = False
    can_delete = False
    form_base_class = SecureForm  # with a token against forged requests
    column_list = ("date", "number", "origin", "destination", "minutes", "remarks")
    column_default_sort = ("date", True)
    column_searchable_list = ("number", "origin", "destination", "remarks")
    form_columns = ("number", "date", "minutes", "remarks", "version")
    form_overrides: ClassVar[dict[str, type]] = {
        "remarks": TextAreaField,
        "version": HiddenField,
    }

    def update_model(self, form: Any, model: Flight) -> bool:
        """Store a correction as the log does: validated, audited, without conflicts."""
        changed = {**form.data, "date": form.data["date"].isoformat()}

        try:
            data = parse_flight({**model.to_dict(), **changed})
            change_flight(model, data, parse_version(changed))
        except InvalidFlightError as error:
            flash(" ".join(error.errors.values()), "error")
        except ConflictError as error:
            flash(str(error), "error")
        else:
            return True

        return False
