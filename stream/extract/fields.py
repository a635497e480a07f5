"""Names that a candidate carries: the packet's ``candidate`` record (schema 4.02, in its order) and our extension."""

from __future__ import annotations

CANDIDATE_FIELDS = (
    "jd", "fid", "pid", "diffmaglim", "pdiffimfilename", "programpi", "programid", "candid", "isdiffpos",
    "tblid", "nid", "rcid", "field", "xpos", "ypos", "ra", "dec", "magpsf", "sigmapsf", "chipsf", "magap",
    "sigmagap", "distnr", "magnr", "sigmagnr", "chinr", "sharpnr", "sky", "magdiff", "fwhm", "classtar",
    "mindtoedge", "magfromlim", "seeratio", "aimage", "bimage", "aimagerat", "bimagerat", "elong", "nneg",
    "nbad", "rb", "ssdistnr", "ssmagnr", "ssnamenr", "sumrat", "magapbig", "sigmagapbig", "ranr", "decnr",
    "sgmag1", "srmag1", "simag1", "szmag1", "sgscore1", "distpsnr1", "ndethist", "ncovhist",
    "jdstarthist", "jdendhist", "scorr", "tooflag", "objectidps1", "objectidps2", "sgmag2", "srmag2",
    "simag2", "szmag2", "sgscore2", "distpsnr2", "objectidps3", "sgmag3", "srmag3", "simag3", "szmag3",
    "sgscore3", "distpsnr3", "nmtchps", "rfid", "jdstartref", "jdendref", "nframesref", "rbversion",
    "dsnrms", "ssnrms", "dsdiff", "magzpsci", "magzpsciunc", "magzpscirms", "nmatches", "clrcoeff",
    "clrcounc", "zpclrcov", "zpmed", "clrmed", "clrrms", "neargaia", "neargaiabright", "maggaia",
    "maggaiabright", "exptime", "drb", "drbversion",
)  # fmt: skip

EXTRA_FIELDS = (
    "flux", "fluxerr", "refflux", "refmagzp", "limmag", "jdmid", "maskbits", "dipole", "sciflux", "scifluxerr",
    "reffluxerr", "dipole_sep", "chi2px", "chi4px", "chi7px", "unexplained", "masked", "persistdist",
)  # fmt: skip
