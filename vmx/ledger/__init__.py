"""The ledger of VM exits: its records (`record`), recording (`ledger`), the table by reason (`table`) and the
files of a kept run (`files`). An observer: it reads what the machine hands it and changes nothing."""
