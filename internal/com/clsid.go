package com

// CLSID is the plugin's class. It never changes: users' GMSACredentialSpecs name it.
const CLSID = "{E4781092-F116-4B79-B55E-28EB6A224E26}"
