package cli

import "github.com/spf13/cobra"

// commands are the constructors of the commands, in the order in which help shows them.
var commands = []func(*globals) *cobra.Command{newCredspec, newAccount, newVerify, newDoctor}
