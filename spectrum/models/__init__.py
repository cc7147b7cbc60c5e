"""Networks made of the operation, by name. Listing and checking names does not load torch."""

from spectrum.models.build import build_model as build_model
from spectrum.models.families import check_model as check_model
from spectrum.models.families import declares_uses as declares_uses
from spectrum.models.families import list_models as list_models
from spectrum.models.families import own_values as own_values
from spectrum.models.families import register_model as register_model
from spectrum.models.families import registered_in as registered_in
from spectrum.models.families import stage_widths as stage_widths
from spectrum.models.families import unused_by as unused_by
from spectrum.models.options import NetworkOptions as NetworkOptions
