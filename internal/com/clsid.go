package com

import "github.com/ccgrkc/ccgrkc/internal/credential"

// CLSID is the plugin's class.
const CLSID = credential.PluginClass
