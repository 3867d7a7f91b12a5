-- What a change of plan would come to. The change is made, the invoice it leads to is read, and the change is taken back, in a
-- subtransaction: so a preview tells what the change does by the very code that does it, and leaves nothing behind.

CREATE FUNCTION billing.preview_subscription(tenant_id text, plan text,
                                             proration_behavior text DEFAULT 'create_prorations')
RETURNS TABLE (metric text, tier int, description text, quantity numeric, unit_amount numeric, amount numeric,
               currency text, period_start timestamptz, period_end timestamptz, kind text)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM billing.update_subscription(tenant_id, plan, proration_behavior);
    RETURN QUERY SELECT * FROM billing.get_upcoming_invoice(preview_subscription.tenant_id);
    RAISE EXCEPTION SQLSTATE 'PREVW';
EXCEPTION WHEN SQLSTATE 'PREVW' THEN
    NULL;       -- the rows are the result already
END $$;
COMMENT ON FUNCTION billing.preview_subscription(text, text, text) IS
    'returns the lines that get_upcoming_invoice() would after update_subscription() with the same arguments, and changes nothing. Raises as update_subscription does';
